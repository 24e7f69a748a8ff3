"""Les modèles du livre, un fichier par modèle ; ils ne savent rien des données ni de l'entraînement.

Chaque modèle a une configuration figée (`Modele.Config`), une méthode `loss(*lot)` qui rend un
dictionnaire contenant « loss », et un nom : celui de son fichier.
"""
