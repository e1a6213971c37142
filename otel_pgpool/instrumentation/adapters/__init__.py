"""The adapters: one folder for each library whose pools are instrumented."""
