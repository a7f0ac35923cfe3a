"""`python -m dynadapt`: the same as the command `dynadapt`."""

from dynadapt.main import run

if __name__ == "__main__":
    run()
