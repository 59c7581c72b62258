"""What a training will take before anything starts: time, memory, storage traffic, and what will hold it up."""
