"""The people of the journeys: Alice and Bob, each with a phone of one make or the other."""

import contextlib
from collections.abc import AsyncIterator, Sequence

from tests.phones.phone import Phone
from tests.phones.signal_libsignal import SignalLibsignal
from tests.phones.signal_protocol import Signal
from tests.phones.signal_python import SignalPython

MAKES = ["python", "libsignal"]


@contextlib.asynccontextmanager
async def two_phones(urls: Sequence[str], make: str) -> AsyncIterator[tuple[Phone, Phone]]:
    """Alice on the first server and Bob on the last, which may be the same one; both online."""
    async with contextlib.AsyncExitStack() as stack:
        phones = []
        for url, name in ((urls[0], "alice_crypto"), (urls[-1], "bob_crypto")):
            phone = await stack.enter_async_context(await Phone.register(url, name, await _signal(make)))
            ready = await phone.connect()
            assert ready["user_id"] == phone.user_id
            phones.append(phone)
        yield phones[0], phones[1]


async def _signal(make: str) -> Signal:
    return SignalPython() if make == "python" else await SignalLibsignal.start()
