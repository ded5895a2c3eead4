"""`python -m cogvideox`, and `torchrun -m cogvideox` for several processes: the same as `cogvideox`."""

from cogvideox.cli.main import main

if __name__ == "__main__":
    main()
