"""Operations (create, start, kill, delete …) as sequences over the rooms, exits, recovery."""
