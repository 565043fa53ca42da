"""`fedmerge deploy doctor`: which doors of a federation are open, asked from one party's place."""
