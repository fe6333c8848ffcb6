"""``python -m daskgmm`` is the command ``daskgmm``."""


def main() -> None:
    """Run the command.

    It is imported here: a new process of a local cluster runs the script that started
    the first one, up to its main guard, and would load all that commands need.
    """
    from daskgmm.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
