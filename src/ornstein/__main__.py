"""`python -m ornstein`, for launchers that start modules."""

from ornstein.cli import main

if __name__ == "__main__":
    main()
