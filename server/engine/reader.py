"""reader: the files of coming compositions, read on a thread while the engine goes on."""

from concurrent.futures import Future, ThreadPoolExecutor

from layerloom.composer import Bank, Plan

MOST_AHEAD = 8
"""Compositions that may be read ahead before they are assembled; the next ones wait."""


class Reader:
    """Reads into the host's memory what the bank will need for a plan, one plan after another."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._thread = ThreadPoolExecutor(1, "layerloom-reader")
        self._ahead: dict[str, tuple[Plan, Future[None]]] = {}

    def has_read(self, plan: Plan) -> bool:
        """Whether it is done, and so to be assembled now. Begins where it can; raises what reading did."""
        if plan.digest not in self._ahead:
            if len(self._ahead) < MOST_AHEAD:
                self._ahead[plan.digest] = plan, self._thread.submit(self._bank.stage, plan)
            return False
        _, reading = self._ahead[plan.digest]
        if not reading.done():
            return False
        del self._ahead[plan.digest]
        reading.result()
        return True

    def forget(self, digest: str) -> None:
        """Lets go of what was read for a plan that nobody waits for."""
        plan, reading = self._ahead.pop(digest, (None, None))
        if plan is not None and reading is not None and not reading.cancel():
            # Behind what is being read now, so that nothing of it stays.
            self._thread.submit(self._bank.unstage, plan)
