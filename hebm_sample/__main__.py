"""`python -m hebm_sample` is `hebm-sample`."""

from hebm_sample.cli.sample import main

if __name__ == "__main__":
    main(prog_name="hebm-sample")
