"""Supervision of a deployed run: submit it, see how it is, submit it again when it was lost."""
