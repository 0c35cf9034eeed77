"""`python -m jobs.demo.comparing`, which `make compare` calls."""

import sys

import typer

from common.errors import ConfigError, TempSampError
from jobs.demo.comparing.command import console, main
from jobs.local.processes import interruptible

if __name__ == "__main__":
    try:
        with interruptible():
            typer.run(main)
    except KeyboardInterrupt:
        console.print("stopped; finished runs have their records, the same command goes on")
        sys.exit(130)
    except (ConfigError, TempSampError, ValueError) as error:
        console.print(f"[red]compare: {error}[/red]")
        sys.exit(2 if isinstance(error, ConfigError) else 1)
