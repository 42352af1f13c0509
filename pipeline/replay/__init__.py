"""Replay: any slice of Kafka's history into a sandbox that cannot touch production, compared, reported, dropped.

    plan.make → Folder.made → run.run → compare.compare → report → drop.drop

What goes in is fixed in offsets when it is planned; all that a sandbox has is called `sandbox_<id>…`, and who writes
there may write nowhere else. The ordinary processes run in it, told by settings alone.
"""
