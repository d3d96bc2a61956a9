"""A process with all imports done, which forks a run of a program for each request: start-up is most of a short run.

It reads a JSON object a line from standard input, and answers each with a line. {"start": ...} forks a program and
answers its process id; {"poll": pid} answers its exit code, null while it runs. Nothing here starts a thread: a fork
of a process with threads may hang.
"""

import json
import os
import runpy
import sys
import traceback


def run(request: dict) -> None:
    """Become the program: its session, working directory, environment, output and arguments, and run it."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        file = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = request["argv"]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    sys.path[1:1] = [folder for folder in request["env"].get("PYTHONPATH", "").split(os.pathsep) if folder]
    runpy.run_path(sys.argv[0], run_name="__main__")


def fork(request: dict) -> int:
    """Return the process id of a program that is forked from this process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run(request)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finish(code)


def finish(code: int) -> None:
    """End this process as Python does, exit handlers included."""
    import atexit
    import logging
    import threading

    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def main() -> None:
    import accelerate.commands.launch  # noqa: F401
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import open_clip  # noqa: F401
    import pandas  # noqa: F401
    from diffusers import StableDiffusion3Pipeline  # noqa: F401
    from transformers import AutoProcessor, Qwen2ForCausalLM, Qwen2VLForConditionalGeneration  # noqa: F401

    import brushup.evaluation.report
    import brushup.publishing.hub
    import brushup.render.service.launch
    import brushup.training.trainer  # noqa: F401

    print("ready", flush=True)
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = fork(request["start"])
        else:
            pid = request["poll"]
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
