"""From predictions to the report: metrics with intervals, tables, notes and plots."""
