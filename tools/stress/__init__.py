"""What a kill and a stranger's file can do, tried out: ``python -m tools.stress``; bounded, outside the suite."""
