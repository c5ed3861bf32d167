"""What git knows of this repository; nothing, where there is no git or no history."""

import subprocess

from foredraft import paths


def output(*words: str) -> str:
    """What a git command prints, without the end of its last line; empty if it fails."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=paths.ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.rstrip("\n")


def commits_with(text: str, file: str) -> list[str]:
    """The commits, oldest first, that brought a text into a file, or took it out."""
    return output("log", "--reverse", "--format=%H", f"-S{text}", "--", file).split()


def file_at(commit: str, file: str) -> str:
    """A file of the repository as a commit has it; empty if it has none."""
    return output("show", f"{commit}:{file}")


def is_repository() -> bool:
    """Check whether the files at hand are a git checkout of their own."""
    top = output("rev-parse", "--show-toplevel")
    return bool(top) and paths.ROOT.samefile(top)


def changed_files() -> list[str]:
    """The tracked files that are not as they were committed."""
    return output("diff", "--name-only", "HEAD").splitlines()
