"""Values that travel: as they were, writable, their long buffers beside the pickle and not in it."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.messages import pickling
from forgectl.messages.frames import LONG

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def there(value: Any) -> Any:
    """The value as another process has it: frames become bytes of their own on the way."""
    return pickling.loads([f if isinstance(f, bytes) else bytearray(f) for f in pickling.dumps(value)])


@given(PLAIN)
def test_plain_values_arrive_as_they_were(value: Any) -> None:
    assert there(value) == value


def test_functions_and_classes_without_a_name_there_go_by_value() -> None:
    factor = 3

    class Local:
        def __call__(self, x: int) -> int:
            return factor * x

    assert there(lambda x: x + factor)(1) == 4
    assert there(Local())(2) == 6


def test_modules_that_are_registered_go_by_value() -> None:
    import tests.unit.sync.sync_cases as module

    function = next(v for v in vars(module).values() if callable(v) and getattr(v, "__module__", "") == module.__name__)
    cloudpickle.register_pickle_by_value(module)
    try:
        assert b"cloudpickle" in pickling.dumps(function)[0]
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert b"cloudpickle" not in pickling.dumps(function)[0]


def test_what_cannot_be_pickled_is_an_error() -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickling.dumps(threading.Lock())


@pytest.mark.parametrize("length", [0, 1, LONG - 1, LONG, 1 << 20])
def test_arrays(length: int) -> None:
    np = pytest.importorskip("numpy")
    array = (np.arange(length) % 256).astype(np.uint8)
    frames = pickling.dumps([array, array[::2]])
    assert len(frames) == 1 + (length >= LONG)  # a view with gaps is not in one piece
    same, half = there([array, array[::2]])
    assert (same == array).all()
    assert (half == array[::2]).all()
    if length:
        same[0] += 1  # a receiver may write into what it got
        half[0] += 1


def test_long_arrays_are_not_copied_into_the_pickle() -> None:
    np = pytest.importorskip("numpy")
    array = np.zeros(1 << 20, np.uint8)
    first, buffer = pickling.dumps(array)
    assert len(first) < 1000
    array[7] = 9
    assert buffer[7] == 9


class TestTensors:
    """Tensors give their memory as a buffer, where that is all there is to them."""

    def all_alike(self, tensor: Any, frames: int) -> Any:
        import torch

        assert len(pickling.dumps(tensor)) == frames
        found = there(tensor)
        assert (found.dtype, found.shape, found.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad)
        assert type(found) is type(tensor)
        assert torch.equal(found.detach(), tensor.detach())
        return found

    @pytest.mark.parametrize(
        "dtype", ["float32", "float64", "bfloat16", "float16", "int64", "uint8", "bool", "complex64"]
    )
    def test_of_every_type(self, dtype: str) -> None:
        torch = pytest.importorskip("torch")
        tensor = (torch.arange(1 << 18) % 2).reshape(4, -1).to(getattr(torch, dtype))
        found = self.all_alike(tensor, 2)
        found[0, 0] = 1  # it can be written to

    def test_of_few_bytes_or_none(self) -> None:
        torch = pytest.importorskip("torch")
        for tensor in (torch.tensor(3.5), torch.empty(0), torch.ones(3)):
            self.all_alike(tensor, 1)

    def test_that_are_not_in_one_piece_or_more_than_numbers(self) -> None:
        torch = pytest.importorskip("torch")
        plain = torch.arange(1 << 18, dtype=torch.float32)
        self.all_alike(plain.reshape(512, -1).t(), 1)
        self.all_alike(plain.clone().requires_grad_(), 2)
        assert isinstance(there(torch.nn.Parameter(plain.clone())), torch.nn.Parameter)
        complex_numbers = torch.randn(4, dtype=torch.complex64)
        for tensor in (complex_numbers.conj(), complex_numbers.conj().imag, torch.ones(3, dtype=torch.float8_e4m3fn)):
            self.all_alike(tensor, 1)
        assert torch.equal(there(plain[:3].to_sparse()).to_dense(), plain[:3])
        marked = plain.clone()
        marked.mark = "mine"
        assert there(marked).mark == "mine"

    def test_in_what_is_pickled_by_value(self) -> None:
        torch = pytest.importorskip("torch")
        tensor = torch.ones(1 << 18)
        frames = pickling.dumps((lambda: 1, tensor))
        assert len(frames) == 2
        one, found = there((lambda: 1, tensor))
        assert one() == 1
        assert torch.equal(found, tensor)


def test_a_value_within_a_value() -> None:
    np = pytest.importorskip("numpy")
    array = np.arange(1 << 18)
    inner = there({"payload": pickling.nested((array, "x"))})["payload"]
    found, text = pickling.loads(inner)
    assert (found == array).all()
    assert text == "x"


def test_the_size_of_a_message() -> None:
    np = pytest.importorskip("numpy")
    frames = pickling.dumps(np.zeros(1 << 20))
    assert pickling.size(frames) == len(frames[0]) + (8 << 20)


def test_pickles_are_of_protocol_5() -> None:
    assert pickling.dumps(1)[0][:2] == pickle.PROTO + b"\x05"
