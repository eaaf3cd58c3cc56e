"""The guided first run: extract, calibrate, train two arms, measure, report."""
