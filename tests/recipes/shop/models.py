from django.db import models


class Order(models.Model):
    amount = models.IntegerField()
    lines = models.JSONField(default=list)
    made = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"order {self.pk}"
