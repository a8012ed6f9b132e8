"""One call that quantizes a network in memory, without the harness: `flexround.quantize`."""
