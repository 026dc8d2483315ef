"""kernel_checks: the Triton kernels against float64, on random inputs, with poison wherever nothing may be read.

bench/kernels.py runs them on the GPU at hand; under TRITON_INTERPRET=1 they run on the CPU. Outputs, and guards on both
sides of them, are filled with 0xFF (a NaN in every float) beforehand, and so is what lies between pages.
An error bound is a unit in the last place for each rounding, and 1e-5 of the sum of magnitudes for fp32 sums.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from layerloom.kernels import assign, buffers, compose, delta_linear, paged_embedding, paged_linear, paged_rms_norm
from layerloom.kernels.assign import assign_torch
from layerloom.kernels.compose_torch import compose_torch
from layerloom.kernels.delta import Delta, Dense, Factors, Xor

from .poison import Batch, Failure, arena, bits, judged, on, packed, poison_free_memory, poisoned, random_bits, ulp

CODECS = ("dense", "xor", "int8", "int4", "sign", "factors")
DTYPES = (torch.bfloat16, torch.float16)
WEIGHTS = {1: [1.0], 2: [0.5, 0.5], 3: [0.5, 0.25, 0.125]}


def expert(codec: str, base: torch.Tensor, n: int, k: int, group: int) -> tuple[Delta, torch.Tensor, torch.Tensor]:
    """(A delta of base [n, k], the expert in float64, the sum of magnitudes that it is made of)."""
    if codec in ("dense", "xor"):
        values = torch.randn(n, k).to(base.dtype)
        delta: Delta = Dense(values) if codec == "dense" else Xor(bits(values) ^ bits(base))
        return delta, values.double(), values.double().abs()
    if codec == "factors":
        delta = Factors(torch.randn(16, k).to(base.dtype), torch.randn(n, 16).to(base.dtype) * 0.1, 0.5)
        exact = 0.5 * delta.b.double() @ delta.a.double()
        size = 0.5 * delta.b.double().abs() @ delta.a.double().abs()
    else:
        delta, exact = packed(n, k, {"int8": 8, "int4": 4, "sign": 1}[codec], group)
        size = exact.abs()
    return delta, base.double() + exact, base.double().abs() + size


def check_compose(
    codecs: Sequence[str], dtype: torch.dtype, shapes: Sequence[tuple[int, int]], group: int, device: torch.device
) -> Failure:
    """Against float64; and, but for products of factors, bit by bit against the torch twin on the CPU."""
    weights = WEIGHTS[len(codecs)]
    count = sum(n * k for n, k in shapes)
    base = torch.randn(count).to(dtype)
    pages: list[list[Delta]] = [[] for _ in codecs]
    exact, bound = (1.0 - sum(weights)) * base.double(), ulp(dtype) * (1.0 - sum(weights)) * base.double().abs()
    start = 0
    for n, k in shapes:
        span = slice(start, start + n * k)
        for page, codec, w in zip(pages, codecs, weights, strict=True):
            # A vector, as norms are, has no codec of its own.
            chosen = "dense" if n == 1 and codec != "xor" else codec
            delta, values, size = expert(chosen, base[span].view(n, k), n, k, group)
            page.append(delta)
            exact[span] += w * values.flatten()
            bound[span] += w * ((1.02 * ulp(dtype)) * values.abs() + 1e-5 * size).flatten()
        start += n * k
    offset = 0 if group % 32 == 0 else 3
    out, intact = poisoned((count,), dtype, device, offset)
    under, _ = poisoned((count,), dtype, device, offset)
    under.copy_(base)
    compose(out, under, [[on(delta, lambda t: t.to(device)) for delta in page] for page in pages], weights)
    if not intact():
        return "it wrote outside its page"
    if "factors" not in codecs:
        twin = torch.empty_like(base)
        compose_torch(twin, base, list(zip(weights, pages, strict=True)), 1.0 - sum(weights))
        if differ := int((bits(out) != bits(twin)).sum()):
            return f"{differ} of {count} numbers are not the torch twin's"
    return judged(out, exact, bound)


def check_patterns(codec: str, dtype: torch.dtype, count: int, device: torch.device) -> Failure:
    """One exact expert of any bits at all, NaNs of all kinds among them, comes out bit by bit."""
    base, wanted = random_bits(count), random_bits(count)
    delta = Dense(wanted.to(device).view(dtype)) if codec == "dense" else Xor((base ^ wanted).to(device))
    out, intact = poisoned((count,), dtype, device)
    compose(out, base.to(device).view(dtype), [[delta]], [1.0])
    return None if torch.equal(bits(out), wanted) and intact() else "the bits are not the expert's"


def check_assign(tokens: int, slots: int, layers: int, device: torch.device) -> Failure:
    of_token = torch.randint(-1, slots + 1, (tokens,), dtype=torch.int32)
    pages = torch.randint(-1, max(2, slots // 2), (layers, slots), dtype=torch.int32)
    twin_order, twin = buffers(tokens, layers, slots)
    assign_torch(of_token, pages, twin_order, twin)
    order, tables = buffers(tokens, layers, slots, device)
    for buffer in (order, *tables.values()):
        buffer.fill_(0x7F7F7F7F)
    assign(of_token.to(device), pages.to(device), order, tables)
    routed = int(((of_token >= 0) & (of_token < slots)).sum())
    same = torch.equal(order.cpu()[:routed], twin_order[:routed])
    wrong = [block for block, table in tables.items() if not torch.equal(table.cpu(), twin[block])]
    return None if same and not wrong else f"order {'right' if same else 'wrong'}, wrong tables: {wrong}"


def check_linear(
    tokens: int, pages: int, n: int, k: int, dtype: torch.dtype, bias: str, accumulate: bool, device: torch.device
) -> Failure:
    batch = Batch(tokens, pages, device)
    x, weight = torch.randn(tokens, k).to(dtype), torch.randn(pages, n, k).to(dtype)
    shift, before = torch.randn(pages, n).to(dtype), torch.randn(tokens, n).to(dtype)
    exact, size = torch.zeros(tokens, n).double(), torch.zeros(tokens, n).double()
    for page in range(pages):
        mine = batch.page == page
        exact[mine] = x[mine].double() @ weight[page].double().T
        size[mine] = x[mine].double().abs() @ weight[page].double().abs().T
        if bias:
            exact[mine] += shift[page].double()
    out, intact = poisoned((tokens, n), dtype, device)
    if accumulate:
        out.copy_(before)
        exact += before.double()
    paged_linear(
        x.to(device),
        arena(weight, device),
        batch.tiles,
        arena(shift, device) if bias else None,
        batch.rows if bias == "slot" else None,
        out,
        accumulate,
    )
    untouched = bits(before) if accumulate else torch.full((tokens, n), -1, dtype=torch.int16)
    if not intact() or not torch.equal(bits(out)[~batch.live], untouched[~batch.live]):
        return "it wrote where nothing is to be written"
    exact, size = exact[batch.live], size[batch.live]
    return judged(out[batch.live.to(device)], exact, ulp(dtype) * exact.abs() + 1e-5 * size)


def check_delta(
    tokens: int, pages: int, n: int, k: int, dtype: torch.dtype, codec: str, group: int, device: torch.device
) -> Failure:
    batch = Batch(tokens, pages, device)
    x, before = torch.randn(tokens, k).to(dtype), torch.randn(tokens, n).to(dtype)
    slack = torch.zeros(tokens, n).double()
    if codec == "factors":
        delta: Delta = Factors(torch.randn(pages, 16, k).to(dtype), torch.randn(pages, n, 16).to(dtype) * 0.1)
        dense = delta.b.double() @ delta.a.double()
    else:
        delta, dense = packed(n, k, {"int8": 8, "int4": 4, "sign": 1}[codec], group, pages)
    exact, size = before.double(), torch.zeros(tokens, n).double()
    for page in range(pages):
        mine = batch.page == page
        rows, weight = x[mine].double(), dense[page]
        exact[mine] += rows @ weight.T
        size[mine] = rows.abs() @ weight.abs().T
        if isinstance(delta, Factors):
            # What a product with a gives is rounded too.
            b, a = delta.b[page].double(), delta.a[page].double()
            size[mine] = rows.abs() @ a.abs().T @ b.abs().T
            slack[mine] = (rows @ a.T).abs() @ b.abs().T
    if group % 32:
        slack = size
    y, intact = poisoned((tokens, n), dtype, device)
    y.copy_(before)
    delta_linear(y, x.to(device), on(delta, lambda t: arena(t, device)), batch.tiles)
    if not intact() or not torch.equal(bits(y)[~batch.live], bits(before)[~batch.live]):
        return "it wrote where nothing is to be written"
    return judged(y, exact, ulp(dtype) * (exact.abs() + slack) + 1e-5 * size)


def check_norm(
    tokens: int, heads: int, width: int, dtype: torch.dtype, residual: bool, unit: bool, device: torch.device
) -> Failure:
    batch = Batch(tokens, 3, device)
    shape = (tokens, heads, width) if heads > 1 else (tokens, width)
    x, other, weight = (torch.randn(*s).to(dtype) for s in (shape, shape, (3, width)))
    z = x.double() + other.double() if residual else x.double()
    factor = weight.double()[batch.page.clamp(min=0)].view(tokens, *(1,) * (heads > 1), width) + unit
    y = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6) * factor
    live = batch.live.view(tokens, *(1,) * (len(shape) - 1))
    y, z = y.where(live, 0), z.where(live, 0)
    xs, others = x.to(device), other.to(device) if residual else None
    paged = arena(weight, device)
    poison_free_memory((shape, dtype), (shape, dtype), device=device)
    found, total = paged_rms_norm(xs, paged, batch.rows, 1e-6, others, unit)
    if total is not None and (wrong := judged(total, z, ulp(dtype) * z.abs())):
        return f"of the residual {wrong}"
    return judged(found, y, 2 * ulp(dtype) * y.abs())


def check_embedding(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> Failure:
    batch, vocabulary = Batch(tokens, 3, device), 37
    ids, weight = torch.randint(-2, vocabulary + 3, (tokens,)), random_bits(3, vocabulary, width).view(dtype)
    known = batch.live & (ids >= 0) & (ids < vocabulary)
    wanted = weight.view(torch.int16)[batch.page.clamp(min=0), ids.where(known, 0)].where(known.unsqueeze(-1), 0)
    on_device, paged = ids.to(device), arena(weight, device)
    poison_free_memory(((tokens, width), dtype), device=device)
    found = paged_embedding(on_device, paged, batch.rows)
    return None if torch.equal(bits(found), wanted) else "the rows are not those of the tables"


def check_far_pages(device: torch.device) -> Failure:
    """Pages more than 2^31 numbers apart."""
    far, n, k = (1 << 31) + 16, 128, 256
    x, weight = torch.randn(64, k).bfloat16(), torch.randn(2, n, k).bfloat16()
    memory = torch.empty(far + n * k, dtype=torch.bfloat16, device=device)
    view = memory.as_strided((2, n, k), (far, k, 1))
    view.copy_(weight)
    batch = Batch(64, 2, device)
    found = paged_linear(x.to(device), view, batch.tiles)[batch.live.to(device)]
    both = torch.einsum("tk,pnk->ptn", x.double(), weight.double())
    exact = both[batch.page.clamp(min=0), torch.arange(64)][batch.live]
    return judged(found, exact, ulp(torch.bfloat16) * exact.abs() + 1e-5 * k)


def cases(device: torch.device) -> Iterator[tuple[str, str, Callable[[], Failure]]]:
    """(op, case, check). Small ones for the interpreter; on a GPU those and larger ones, so every launch setting."""
    gpu = device.type == "cuda"
    even = ((32, 512), (1, 512), (48, 288)) if not gpu else ((512, 4096), (1, 4096), (768, 2080))
    odd = ((35, 293), (1, 35))
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for codec in ("dense", "xor"):
            yield "compose", f"{codec}, any bits, {name}", partial(check_patterns, codec, dtype, 5003, device)
        blends = [(codec,) * count for codec in CODECS for count in (1, 2, 3)]
        blends += [("xor", "int4"), ("sign", "factors", "dense"), ("int8", "sign", "int4")]
        for blend in blends:
            # Blends of every dtype are interpreted in tests/kernels/interpreted_compose.py.
            if not gpu and dtype != DTYPES[0] and len(blend) > 1:
                continue
            label = " + ".join(blend)
            yield "compose", f"{label}, {name}", partial(check_compose, blend, dtype, even, 128, device)
            yield "compose", f"{label}, odd, {name}", partial(check_compose, blend, dtype, odd, 48, device)
        tokens = (1, 3, 17, 129, 600) if gpu else (3, 70)
        for m in tokens:
            for pages, n, k in ((1, 64, 128), (3, 35, 77), (9, 96, 264)) + (((4, 512, 4096),) if gpu else ()):
                case = f"{m} tokens, {pages} pages of {n}x{k}, {name}"
                for bias, accumulate in (("", False), ("page", False), ("slot", False), ("", True)):
                    if gpu or m == 3 or not (bias or accumulate):
                        label = f"{case} {bias and 'bias by ' + bias}{' accumulated' * accumulate}"
                        check = partial(check_linear, m, pages, n, k, dtype, bias, accumulate, device)
                        yield "paged_linear", label.strip(), check
            for codec, group in (("int8", 128), ("int4", 128), ("sign", 128), ("int4", 48), ("factors", 128)):
                for n, k in ((64, 512), (35, 293)) + (((512, 4096),) if gpu else ()):
                    case = f"{codec} of {group}, {m} tokens, {n}x{k}, {name}"
                    yield "delta_linear", case, partial(check_delta, m, 3, n, k, dtype, codec, group, device)
        for heads, width in ((1, 320), (5, 64)) + (((1, 4096), (32, 128)) if gpu else ()):
            for residual, unit in ((False, False), (True, False), (False, True), (True, True)):
                case = f"{heads}x{width}{' residual' * residual}{' 1+w' * unit}, {name}"
                yield "paged_rms_norm", case, partial(check_norm, 33, heads, width, dtype, residual, unit, device)
        for width in (35, 4096) if gpu else (35, 256):
            yield "paged_embedding", f"{width}, {name}", partial(check_embedding, 33, width, dtype, device)
    for m, slots in ((1, 1), (33, 9), (129, 64)) + (((9000, 17),) if gpu else ()):
        yield "assign", f"{m} tokens, {slots} slots", partial(check_assign, m, slots, 3, device)
    if gpu and torch.cuda.mem_get_info()[0] > 6 << 30:
        yield "paged_linear", "pages 2^31 numbers apart", partial(check_far_pages, device)


def run(device: torch.device) -> dict[str, tuple[int, list[str]]]:
    """Of each op, how many checks ran, and what is wrong. An exception is wrong, too."""
    found: dict[str, tuple[int, list[str]]] = {}
    for op, case, check in cases(device):
        count, wrong = found.get(op, (0, []))
        try:
            failure = check()
        except Exception as error:  # The other kernels are to be checked nevertheless.
            failure = f"{type(error).__name__}: {error}"
        found[op] = (count + 1, wrong + ([f"{op}, {case}: {failure}"] if failure else []))
    return found
