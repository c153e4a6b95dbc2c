"""``timm-dad diagnose``: which of teacher, fit and shift limits a student on shifted data."""
