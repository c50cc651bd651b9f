"""Speed and memory, measured: ``python -m benchmarks [NAME...]``. One module and one JSON file each."""
