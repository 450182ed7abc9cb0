"""`python -m audit_cli` is `audit-cli`."""

from audit_cli.cli import main

if __name__ == "__main__":
    main()
