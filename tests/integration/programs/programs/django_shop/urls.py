from django.urls import path

from django_shop import views

urlpatterns = [
    path("orders/<int:number>", views.order),
    path("later/<int:number>", views.order_later),
]
