"""`python -m dynadapt`: the same as the command `dynadapt`."""

from dynadapt import ending

if __name__ == "__main__":
    ending.hold()  # until all else is imported
    from dynadapt.main import run

    run()
