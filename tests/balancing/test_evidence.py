"""What balancers are given."""

import pytest
import torch

from polytask.balancing.base import Evidence


@pytest.mark.parametrize("tasks", [6, 11, 12, 13, 25, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gramian_of_a_large_jacobian_is_that_of_its_rows(tasks: int, dtype: torch.dtype):
    """It is made by pieces of columns and strips of rows; here neither divides evenly."""
    jacobian = torch.randn(tasks, 50_001, dtype=dtype, generator=torch.Generator().manual_seed(tasks))
    found = Evidence([str(k) for k in range(tasks)], jacobian=jacobian).gramian
    exact = jacobian.double() @ jacobian.double().T
    lengths = exact.diagonal().sqrt()
    noise = torch.finfo(dtype).eps * 50_001**0.5  # of a sum whose roundings are random
    torch.testing.assert_close(
        found / lengths / lengths.unsqueeze(1), exact / lengths / lengths.unsqueeze(1), rtol=0, atol=noise
    )
    assert torch.equal(found, found.T)
