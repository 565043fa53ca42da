"""The pictures of a report: drawn by matplotlib, coloured by the page that they stand in."""
