"""Completions of vLLM handed over as each is finished, not when all are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

Tell = Callable[[int, Sequence[int]], None]


def stream_completions(generation: Any, tell: Tell) -> None:
    """Let TRL's vLLM generation tell of each completion as it is finished.

    Args:
        generation: TRL's `VLLMGeneration`; changed in place.
        tell: Called with the prompt's place in the batch and the completion's tokens; completions
            of one prompt are told under the first of its places.
    """
    if generation.mode == "server":
        _stream_server(generation.vllm_client, tell)
    else:
        _stream_engine(generation.llm, tell)


def _stream_engine(llm: Any, tell: Tell) -> None:
    places: dict[tuple[int, ...], int] = {}
    generate, step = llm.generate, llm.llm_engine.step

    def generate_and_note(prompts: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        places.clear()
        for place, prompt in reversed(list(enumerate(prompts))):
            places[tuple(prompt["prompt_token_ids"])] = place
        return generate(prompts, *args, **kwargs)

    def step_and_tell() -> Any:
        outputs = step()
        for output in outputs:
            place = places.get(tuple(output.prompt_token_ids or ()))
            if output.finished and place is not None:
                for completion in output.outputs:
                    tell(place, completion.token_ids)
        return outputs

    llm.generate, llm.llm_engine.step = generate_and_note, step_and_tell


def _stream_server(client: Any, tell: Tell) -> None:
    """Ask for each prompt by itself, all at once: a server answers a request as a whole."""
    generate = client.generate

    def one_by_one(prompts: Sequence[Any], features: Any = None, **kwargs: Any) -> Any:
        if features is not None or not prompts:
            return generate(prompts=prompts, features=features, **kwargs)

        def one(index: int) -> Any:
            answer = generate(prompts=[prompts[index]], **kwargs)
            for ids in answer["completion_ids"]:
                tell(index * kwargs.get("n", 1), ids)
            return answer

        calls = [in_background(one, index) for index in range(len(prompts))]
        answers = [call.result() for call in calls]
        return {
            name: None if answers[0][name] is None else [row for a in answers for row in a[name]]
            for name in answers[0]
        }

    client.generate = one_by_one


def in_background(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """Run something in a thread that keeps neither the process nor an interrupt waiting."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
