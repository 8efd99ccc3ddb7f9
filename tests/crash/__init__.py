"""The crash harness: it kills every writing command at each distinct call that changes files, and repeats the command.

    python -m tests.crash                        every command, each call
    python -m tests.crash --command run          one command; --list prints its points
    python -m tests.crash --command run --point 17
    python -m tests.crash --random 50            kills at random moments under `--jobs 2`

After a kill, commands that only read must work, and the command given again must end with what an undisturbed one ends
with: no differing byte, nothing lost, nothing left over. docs/reliability.md has the counts.

    watching.py      counts the calls that change files, and ends the process at one of them
    commands.py      the commands, and the small shop that they work on
    comparing.py     the content of a workspace, without what two undisturbed runs differ in
    harness.py       a server that imports all once and forks a process for each command
"""
