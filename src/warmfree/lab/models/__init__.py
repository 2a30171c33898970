"""Models, each readable in one sitting."""
