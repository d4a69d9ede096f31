"""What runs the ops: one folder or file a backend; they do not know of each other."""
