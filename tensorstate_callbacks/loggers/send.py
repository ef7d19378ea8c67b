"""A file of what an MLflow server missed in; all of it in the server's runs out."""

import argparse
from collections.abc import Sequence

from tensorstate_callbacks.loggers.mlflow_saved import send_saved


def main(arguments: Sequence[str] | None = None) -> int:
    """Send the files and return the exit code, 0 if all arrived."""
    parser = argparse.ArgumentParser(
        prog="python -m tensorstate_callbacks.loggers.send",
        description="Send to MLflow what was written to a file while its server was away.",
    )
    parser.add_argument("file", nargs="+", help="a file that the warning named")
    parser.add_argument("--tracking-uri", help="another server than the one it was meant for")
    words = parser.parse_args(arguments)
    for file in words.file:
        try:
            print(f"{file}: {send_saved(file, tracking_uri=words.tracking_uri)} sent")
        except ConnectionError as error:
            print(error)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
