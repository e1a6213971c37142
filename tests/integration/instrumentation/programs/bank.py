"""A bank with an ORM and too few connections: some customers are turned away."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import create_engine, select
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg2://"),
    pool_size=2,
    max_overflow=0,
    pool_timeout=0.3,
)
Sessions = sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    number: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)


def backend(session: Session) -> int:
    return session.connection().connection.dbapi_connection.get_backend_pid()


def deposit(number: int) -> int:
    with Sessions.begin() as session:
        account = session.scalars(select(Account).where(Account.number == number)).one()
        account.balance += 1
        pid = backend(session)
        inside.wait()
        outside.wait()
    return pid


def look(number: int) -> str:
    try:
        with Sessions() as session:
            return str(session.get(Account, number).balance)
    except NoConnection as error:
        return str(error)


Base.metadata.create_all(engine)
with Sessions.begin() as session:
    session.add_all(Account(number=number) for number in range(2))

inside = threading.Barrier(3)
outside = threading.Barrier(3)
with ThreadPoolExecutor(4) as customers:
    deposits = [customers.submit(deposit, number) for number in range(2)]
    inside.wait()
    refused = list(customers.map(look, range(2)))
    outside.wait()
    backends = [deposit.result() for deposit in deposits]
served = [look(number) for number in range(2)]
print(json.dumps({"backends": backends, "refused": refused, "served": served}))
engine.dispose()
