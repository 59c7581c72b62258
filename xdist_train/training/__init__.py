"""The training job: a loop that knows no Ray, and the thin shell that Ray runs."""
