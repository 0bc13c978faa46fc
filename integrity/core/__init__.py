"""Pure: values in, values out. No I/O, clock, randomness, logging or asyncio."""
