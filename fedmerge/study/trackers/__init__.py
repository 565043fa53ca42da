"""Trackers: a run as it goes, in the dashboards that people have already.

`run.trackers = "tensorboard, mlflow"` names them; each needs the extra of its name, as in
`pip install 'fedmerge[tensorboard]'`. Other packages add theirs by the entry point group `fedmerge.trackers`;
`fedmerge.server_app.trackers` says how.
"""
