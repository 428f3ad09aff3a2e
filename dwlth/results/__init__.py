"""Results on disk: the folder of a preset, the records of its runs, and the table made of them."""

from dwlth.results.folder import Folder
from dwlth.results.provenance import provenance
from dwlth.results.records import KEY, ended, percents, read_claims, read_record, read_table, sparsity_by_round

__all__ = ["KEY", "Folder", "ended", "percents", "provenance", "read_claims", "read_record", "read_table"]
__all__ += ["sparsity_by_round"]
