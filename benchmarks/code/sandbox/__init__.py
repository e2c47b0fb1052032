"""The sandbox: what isolates a program, and how it is judged without ever sharing a process with what judges it.

Standard library only: these files run where nothing else is to be seen. `wire` carries questions and answers, made of `values`, between
`candidate`, which holds the program, and `judge`, which holds the checks; the other files start those two and contain them.
"""
