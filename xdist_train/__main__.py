"""`python -m xdist_train`: the command where no console script is, as in a job whose program came with it."""

from xdist_train.cli import run

if __name__ == "__main__":
    run()
