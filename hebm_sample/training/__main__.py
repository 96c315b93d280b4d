"""`python -m hebm_sample.training` and `accelerate launch -m hebm_sample.training`: the command
`hebm-train`.
"""

from hebm_sample.cli.train import main

if __name__ == "__main__":
    main()
