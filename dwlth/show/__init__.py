"""What people look at: figures, reports, and widgets."""
