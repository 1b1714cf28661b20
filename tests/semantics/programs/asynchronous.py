"""Refs in asyncio: the driver awaits tasks beside other things that it does."""

import asyncio

import fsdray as ray


@ray.remote
def slowly(number: int) -> int:
    return number + 1


@ray.remote
def fails() -> None:
    raise KeyError("expected")


async def chain(start: int) -> int:
    number = await slowly.remote(start)
    return await slowly.remote(number)


async def main() -> None:
    print(await asyncio.gather(*[chain(n) for n in range(5)]))
    print(await asyncio.wait_for(slowly.remote(1), timeout=60))
    [outcome] = await asyncio.gather(fails.remote(), return_exceptions=True)
    print(isinstance(outcome, KeyError))


asyncio.run(main())
