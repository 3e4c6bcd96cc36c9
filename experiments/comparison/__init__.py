"""Any runs side by side on their common items, and the gate that lets only a run without forgetting pass."""
