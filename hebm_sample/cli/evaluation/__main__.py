"""`python -m hebm_sample.cli.evaluation` is `hebm-eval`."""

from hebm_sample.cli.evaluation.main import main

if __name__ == "__main__":
    main(prog_name="hebm-eval")
