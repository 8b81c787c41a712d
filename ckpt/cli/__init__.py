"""FOR PEOPLE: parse, call one flow, print, exit."""
