"""The selection in force: by scope, thread, asyncio task and generator."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from memmod import ModulatedModel, modulate
from memmod.errors import SelectionError
from memmod.run_state import Running, RunState, Scope


def chosen(state: RunState) -> int | None:
    return None if state.index is None else int(state.index)


def scope(state: RunState, number: int | None) -> Scope:
    return Scope(state, state, lambda: state.selecting(None if number is None else torch.tensor([number])))


def test_scopes_and_calls_nest() -> None:
    state = RunState()
    with scope(state, 1):
        before = state.enter(Running(torch.tensor([2])))
        assert chosen(state) == 2
        with scope(state, 3):
            assert chosen(state) == 3
        assert chosen(state) == 2
        state.leave(before)
        with scope(state, None):
            assert state.index is None
        assert chosen(state) == 1
    assert state.index is None


def test_a_scope_may_end_before_one_inside_of_it() -> None:
    state = RunState()
    outer, inner = contextlib.ExitStack(), contextlib.ExitStack()
    outer.enter_context(scope(state, 1))
    inner.enter_context(scope(state, 2))
    outer.close()
    assert chosen(state) == 2
    inner.close()
    assert state.index is None


def test_the_same_scope_twice_and_as_a_decorator() -> None:
    state = RunState()
    again = scope(state, 1)
    with again, again:
        assert chosen(state) == 1
    assert state.index is None

    @again
    def decorated(depth: int) -> list[int | None]:
        return [chosen(state), *(decorated(depth - 1) if depth else [])]

    assert decorated(2) == [1, 1, 1] and state.index is None
    with ThreadPoolExecutor(4) as pool:
        assert all(found == [1, 1] for found in pool.map(decorated, [1] * 50))


def test_decorating_what_runs_later_is_refused() -> None:
    def generator():
        yield

    async def coroutine(): ...

    async def both():
        yield

    for function in (generator, coroutine, both):
        with pytest.raises(SelectionError, match="its body runs after the decorated call has ended"):
            scope(RunState(), 1)(function)


def test_threads_start_with_nothing() -> None:
    state, seen = RunState(), []
    with scope(state, 1):
        thread = threading.Thread(target=lambda: seen.append(state.index))
        thread.start()
        thread.join()
    assert seen == [None]


def test_copies_are_fresh_and_shared() -> None:
    state = RunState()
    with scope(state, 1):
        for duplicate in (copy.deepcopy([state, state]), pickle.loads(pickle.dumps([state, state]))):
            assert duplicate[0] is duplicate[1] and duplicate[0] is not state
            assert duplicate[0].index is None


def test_tasks_have_each_their_own() -> None:
    state, seen = RunState(), []

    async def request(number: int, turns: int) -> None:
        with scope(state, number):
            for _ in range(turns):
                await asyncio.sleep(0)
                seen.append((number, chosen(state)))
        await asyncio.sleep(0)
        seen.append((None, chosen(state)))

    async def serve() -> None:
        await asyncio.gather(*(request(number, 1 + number % 3) for number in range(8)))
        assert state.index is None

    asyncio.run(serve())
    assert len(seen) > 16 and all(want == got for want, got in seen)
    assert state.index is None


def test_tasks_and_threads_of_a_task_inherit() -> None:
    state = RunState()

    async def child() -> list[int | None]:
        before = chosen(state)
        await asyncio.sleep(0)
        with scope(state, 5):
            await asyncio.sleep(0)
            return [before, chosen(state)]

    async def serve() -> None:
        with scope(state, 3):
            assert await asyncio.gather(child(), child()) == [[3, 5], [3, 5]]
            assert await asyncio.to_thread(chosen, state) == 3
            outlives = asyncio.create_task(child())
        assert state.index is None
        assert await outlives == [3, 5]

    asyncio.run(serve())


def requests(state: RunState, number: int) -> Iterator[int | None]:
    with scope(state, number):
        while True:
            yield chosen(state)


def test_generators_that_take_turns_have_each_their_own() -> None:
    state = RunState()
    streams = [requests(state, number) for number in (3, 5, 7)]
    for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
        assert [next(streams[i]) for i in order] == [(3, 5, 7)[i] for i in order]
    for i in (0, 2, 1):
        streams[i].close()
    assert state.index is None


def test_a_suspended_generators_scope_does_not_leak() -> None:
    state = RunState()
    stream = requests(state, 3)
    assert next(stream) == 3
    with pytest.raises(SelectionError, match="'requests' is suspended inside of a scope"):
        _ = state.index
    # What is said there and then holds.
    with scope(state, 4):
        assert chosen(state) == 4 and next(stream) == 3
    assert int(state.selecting(torch.tensor([6])).index) == 6
    with pytest.raises(SelectionError, match="is suspended"):
        _ = state.index
    assert next(stream) == 3
    stream.close()
    assert state.index is None


def test_a_dropped_generator_ends_its_scope() -> None:
    state = RunState()
    for got in requests(state, 3):
        assert got == 3
        break
    gc.collect()
    assert state.index is None


def test_a_generator_goes_on_in_another_thread() -> None:
    state = RunState()
    stream = requests(state, 3)
    assert next(stream) == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(next, stream).result() == 3
        assert pool.submit(chosen, state).result() is None
        pool.submit(stream.close).result()
    assert state.index is None


def test_scopes_inside_and_around_a_generator() -> None:
    state = RunState()

    def stream() -> Iterator[list[int | None]]:
        with scope(state, 1):
            while True:
                seen = [chosen(state)]

                def helper() -> int | None:
                    with scope(state, 2):
                        return chosen(state)

                with scope(state, 8):
                    yield [*seen, helper(), chosen(state)]

    with scope(state, 9):
        generator = stream()
        for _ in range(2):
            assert next(generator) == [1, 2, 8]
        with pytest.raises(SelectionError):
            _ = state.index
        generator.close()
        assert chosen(state) == 9
    assert state.index is None


def test_context_managers_made_of_generators_are_scopes() -> None:
    state = RunState()

    @contextlib.contextmanager
    def outer() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(inner())
            yield

    @contextlib.contextmanager
    def inner() -> Iterator[None]:
        with scope(state, 4):
            yield

    with outer():
        assert chosen(state) == 4
    assert state.index is None

    @contextlib.asynccontextmanager
    async def later():
        with scope(state, 6):
            yield

    async def main() -> None:
        async with later():
            await asyncio.sleep(0)
            assert chosen(state) == 6
        assert state.index is None

    asyncio.run(main())


def test_async_generators() -> None:
    state = RunState()

    async def stream(number: int):
        with scope(state, number):
            while True:
                await asyncio.sleep(0)
                yield chosen(state)

    async def main() -> None:
        one, two = stream(1), stream(2)
        for _ in range(3):
            assert [await anext(one), await anext(two)] == [1, 2]
        with pytest.raises(SelectionError, match="'stream' is suspended"):
            _ = state.index
        # Another task has nothing to do with them, and may go on with one.
        assert await asyncio.create_task(_elsewhere(one)) == [None, 1]
        await one.aclose()
        await two.aclose()
        assert state.index is None

    async def _elsewhere(one) -> list[int | None]:
        return [chosen(state), await anext(one)]

    asyncio.run(main())


def test_a_coroutine_driven_by_hand() -> None:
    state = RunState()

    class Turn:
        def __await__(self):
            yield

    async def request(number: int) -> list[int | None]:
        with scope(state, number):
            seen = []
            for _ in range(3):
                await Turn()
                seen.append(chosen(state))
            return seen

    waiting, results = {number: request(number) for number in (1, 2)}, {}
    while waiting:
        for number, coroutine in list(waiting.items()):
            try:
                coroutine.send(None)
            except StopIteration as end:
                results[number] = end.value
                del waiting[number]
    assert results == {1: [1, 1, 1], 2: [2, 2, 2]} and state.index is None


@pytest.fixture(scope="module")
def wf() -> ModulatedModel:
    torch.manual_seed(0)
    return modulate(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5)), example_input=torch.randn(2, 4))


def test_model_calls_in_interleaved_tasks(wf: ModulatedModel) -> None:
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = [wf(x, forget=c) for c in range(5)]

    async def request(c: int) -> None:
        with wf.forgetting(c):
            for call in (wf, wf.model, wf):
                await asyncio.sleep(0)
                assert torch.equal(call(x), expected[c])

    async def serve() -> None:
        await asyncio.gather(*(request(c) for c in range(5)))

    # Not in the tasks: whether gradients are on is the thread's.
    with torch.no_grad():
        asyncio.run(serve())
    assert torch.equal(wf(x), wf(x, forget=-1))


def test_model_calls_beside_a_suspended_generator(wf: ModulatedModel) -> None:
    x = torch.randn(3, 4)

    def stream(c: int) -> Iterator[torch.Tensor]:
        with wf.forgetting(c):
            while True:
                yield wf(x)

    with torch.no_grad():
        for three, one in zip(stream(3), stream(1), strict=True):
            assert torch.equal(three, wf(x, forget=3)) and torch.equal(one, wf(x, forget=1))
            with pytest.raises(SelectionError, match="pass forget="):
                wf(x)
            with pytest.raises(SelectionError, match="pass forget="):
                wf.model(x)
            break


def test_batch_statistics_in_tasks() -> None:
    state = RunState()

    async def one() -> None:
        with Scope(state, state, lambda: Running(state.index, batch_statistics=True)):
            await asyncio.sleep(0)
            assert state.batch_statistics
            with scope(state, 1):
                assert state.batch_statistics and chosen(state) == 1

    async def other() -> None:
        await asyncio.sleep(0)
        assert not state.batch_statistics

    async def main() -> None:
        await asyncio.gather(one(), other())

    asyncio.run(main())
