"""`python -m hebm_sample.demo` is `hebm-demo`."""

from hebm_sample.demo.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main(prog_name="hebm-demo")
