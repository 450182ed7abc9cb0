"""The papers' security games, played over populations of victims, one JSON file per finished cell."""
