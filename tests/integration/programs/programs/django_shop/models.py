from django.db import models


class Item(models.Model):
    pieces = models.IntegerField()

    class Meta:
        db_table = "stock"

    def __str__(self) -> str:
        return f"item {self.pk}"
