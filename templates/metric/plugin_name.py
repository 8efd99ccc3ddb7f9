"""PluginName: the harmonic mean of precision and recall. Replace it by your metric."""

import numpy as np

from mmrec_lmm.api import MetricSpec, hookimpl


def plugin_name(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    """hits (U, K) bool in rank order, K >= k; n_positives (U,), at least 1: one value per user, (U,)."""
    return 2 * hits[:, :k].sum(axis=1) / (k + n_positives)


@hookimpl
def mmrec_register_metrics() -> list[MetricSpec]:
    return [MetricSpec("PluginName", plugin_name, "harmonic mean of precision and recall")]
