"""The visual vocabulary of the series: what scenes are written with. The kit knows no topic."""
