"""The Django project that ``test_recipes.py`` tries the recipe's database backend on."""
